"""What the page says, apart from answers (`answers.sentences`). Plain text: whoever puts it into HTML escapes it."""

from __future__ import annotations

from guda_core.answers.sentences import TITLE as TITLE
from guda_core.data.prompts import MAX_PROMPT

PURPOSE = (
    "A model learned to draw from several groups of training pictures. Which of them did it need for this picture?"
)
STEPS = (
    "Press an example, let the model draw a picture, or upload one of your own.",
    "The tool compares the model with copies of it, each of which has unlearned one group of training pictures.",
    "You read which group the model misses most, how sure the order is, and who drew that group's pictures.",
)
FIRST_STEP = "Let the model draw a picture, or upload one of your own."  # where there are no examples
PROMPT_FILLED = "Object and style fill it in, without the group's name. Edit it freely."
PROMPT_FREE = "What the picture shall show."
LIMITS = (
    "PNG, JPEG, WebP, AVIF, TIFF or HEIC (where its package is installed), up to 25 MB and 50 megapixels (WebP and "
    "AVIF: 24), 16 pixels or more on each side, 8 times as long as wide at most."
)
PRIVACY = (
    "What you upload lies on the computer that runs this page, is deleted within two hours and trains no model. Who "
    "runs that computer could look at it."
)
FOUND_CAPTION = (
    "The file says that {program} made it from these words. That is only what the file says. Edit it freely."
)
CUT_CAPTION = f"The words were longer than {MAX_PROMPT:,} characters and are cut."
TRY_CAPTIONS = "Uploads: also try other captions"
CAPTIONS_INFO = "Scores the picture again with the best caption that CLIP finds, and without a caption."
WAITING = "Waiting in the queue."
CANCELLING = "Cancelling."
CANCELLED = "Cancelled. What you see was computed before that."
NOT_STARTED = "Too many visitors are waiting, or an input was refused. Try again in a minute."
DONE = "Done."
STORED = "Done. This example was computed earlier and stored. Score it again to compute it now."
FILE_GONE = (
    "No uploaded file of this picture is here any more. Upload and score it again, or leave the box for the file empty."
)
NO_FILE = "No uploaded file is in it: the model drew the picture."
WITH_FILE = "Put the uploaded file in"
WITH_FILE_INFO = (
    "As it is, with its metadata, such as where and when it was taken. Others can then check that the scored picture "
    "was made from it."
)
PICTURE_GONE = "The picture is no longer stored here. Draw or upload it again."
FIRST_BUSY = "The tab Attribute computes now. Press Open again when it is done, or press Cancel there."
NO_PICTURE = "There is no picture yet. Upload one first."
NO_REPORT = "There is no report yet. Choose a report's zip first."
NO_ANSWER = "Nothing is scored yet. Score a picture on the first tab. Its details then appear here."
NOT_UPLOADED = "Only what you upload on this page is accepted. A web address, data or a path on the server is not."
SEVERAL = (
    "Choose up to {most} pictures, or a folder. Each is scored without a caption. A row appears when its picture is "
    "done. Press Open to see the whole answer. For more pictures, use: guda attribute FOLDER --out RESULTS --table"
)
NOT_USED = (
    "Files that hold a prompt, written by a program: {many} of {of}. These prompts were not used: here, each picture "
    "is scored without a caption. To use one, upload its picture on the tab Attribute."
)
NO_PICTURES = "There are no pictures yet. Choose some files or a folder first."
TOO_MANY = (
    "These are {many} pictures. At most {most} can be scored here at once. Choose fewer, or use: guda attribute FOLDER "
    "--out RESULTS --table"
)
NO_ANSWERS = "No picture is scored yet. Score some pictures first."
GO_ON = "Press the button again to go on with the pictures that are left."
STOPPED = "Stopped. What you see was computed before that."
MAKING_REPORTS = "Writing the reports"
SCOPES = {
    "in scope": "It could have.",
    "out of scope": "It could not have.",
    "not assessed": "Not checked.",
}
BROUGHT_BACK = "Done. This answer was computed earlier on this visit."
HISTORY = (
    "The last answers of this visit, {most} at most. Press one to see it again; nothing is computed. You no longer "
    "reach them when you reload or close this page. The server forgets them half an hour after your last press."
)
MAP_OF = "Where in the picture: the map of any group"
MAPPING = "Making the map"
MAP_SAYS = "{name}: {share} of 100 places of the map stand out from its noise."
MAP_NOTHING = "{name}: the map says nothing. No place stands out from its noise. More effort does not change a map."
MAP_THERE = "Its map already stands above."
NO_MAPS = "No map can be made here. Score a picture by the main method first."
NO_MAP = "There is no map of {name}: the model without it cannot be used."
NO_STRIP = "The drawings without a group and the maps are missing or not complete."
NO_CAPTIONS = "Not every other caption could be tried."
NO_WHERE = "The maps are missing or not complete."
TOO_LONG = (  # also the reason in a report
    "The drawings without each group, and the first maps, were not made: that takes {took} here, and the page allows "
    "{most:.0f} s."
)
WITHOUT_PICTURES = (
    "The drawings without each group, or the maps, were not all made for this answer. Score it again to get them."
)
ABORTED = "The GPU was taken back before the work was done. Try again, with less effort or fewer methods."
FAULT = "Something went wrong on the server. The error was logged. Please try again."
DISK = "The file could not be written. The server's disk is full or read-only. Try again later."
OWN_PICTURE = "Not needed: the model made this picture itself."
REPLAYED = {
    "equal": "Equal. Computed again here, every score is the same to the last bit.",
    "within tolerance": "Within tolerance. Computed again here, every number is the same to one part in a thousand (or "
    "0.001 nats). In half precision, a number may also move by a sixth of its interval, and scope's statistic by 0.2. "
    "A picture that was drawn or prepared again may differ a little. "
    "Other hardware or versions cause such differences.",
    "different": "Different. Computed again here, something is not as the report says. The tables show what.",
}


def too_long(took: float, most: float) -> str:
    """Why strip and maps are not shown. took, most: seconds."""
    return TOO_LONG.format(took=seconds(took), most=most)


def seconds(value: float) -> str:
    """A duration, e.g. "about 8 s" or "about 3 min"."""
    return f"about {max(1, round(value))} s" if value < 90 else f"about {round(value / 60)} min"
