"""An answer for people: in sentences and as plain HTML without scripts, for the app and for the page in a report."""
