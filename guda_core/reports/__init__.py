"""The record of an answer: written, read, restored, replayed."""
