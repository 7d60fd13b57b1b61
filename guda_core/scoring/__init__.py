"""Scoring any number of pictures into a table (Parquet parts), and asking that table.

places    files here or anywhere that fsspec knows
listing   which pictures are asked about, kept in order without their pixels
rows      the columns of the table, and the rows of one picture
parts     one part: written in one go, checked when read
scorer    what a worker does with one part
run       a whole table: which parts, by whom
asking    questions to a finished or unfinished table (DuckDB)
page      its summary as one HTML file
again     one row computed again, with its report
"""
