"""Pictures, captions and group sets: where they come from, how they are read and how a style is said."""
