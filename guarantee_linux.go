package usher

// bestGuarantee is what a listener from [Listen] gets here.
const bestGuarantee = GuaranteeAll
