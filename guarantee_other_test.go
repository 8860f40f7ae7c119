//go:build !linux

package usher

const bestGuarantee = GuaranteeQueue
