//go:build unix && !linux

package usher

// bestGuarantee is what a listener from [Listen] gets here.
const bestGuarantee = GuaranteeQueue
