"""Group sets made from the user's own pictures: what a folder, a table or a data set holds, checked and written."""
