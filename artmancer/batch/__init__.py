"""Edit many photos: list them, run the edits, store each result, sort by the verdict.

- photos.py: the list of photos, from a folder, a CSV or a JSONL file
- results_file.py: OUT/results.jsonl, by which a run goes on where the last one stopped
- downloads.py: images that a list names by URL
- run.py: the edits of one run, some photos at a time
- sorting.py, gallery.py: OUT/good, look and failed; OUT/index.html

Where an edit runs (here, on a gateway) is a run.Worker; commands/batch.py makes it.
"""
