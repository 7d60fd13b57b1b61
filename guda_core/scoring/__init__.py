"""Scoring any number of pictures into a table (Parquet parts), and asking that table.

places        files here or anywhere that fsspec knows
listing       which pictures are asked about, without their pixels
table_rows    the columns of the table, and the rows of one picture
parts         one part: written in one go, checked when read
scorer        what a worker does with one part
part_jobs     parts as jobs: here, by worker processes, on Ray
table_run     a whole table
asking        questions to a table, finished or not (DuckDB)
summary_page  its summary as one HTML file
again         a picture's rows computed again, with their report
"""
