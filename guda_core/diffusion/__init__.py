"""Base models under one contract (`base.BaseModel`), named by cards (`cards.yaml`)."""
