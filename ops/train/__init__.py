"""`vnp train classifier`: from labelled genomes to a classifier and a report on groups never seen.

labelled -> overlap -> fragments -> features -> fit -> evaluate -> report; the data flows that way.
"""
