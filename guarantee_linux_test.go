package usher

const bestGuarantee = GuaranteeAll
