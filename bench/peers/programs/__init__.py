"""What each peer runs, in a virtual environment of its own: nothing of heed is imported there but `protos`.

Every program is written as its peer's documentation shows, around the same graph; what can be set is an argument.
"""
