"""``fedward reproduce``: a paper's system as studies that anyone can run, with its table beside ours.

``paper`` reads what ``configs/papers`` holds of a paper, ``playing`` plays its studies, ``beside`` sets the paper's
figures beside ours, ``stages`` measures what a stage of the paper is worth, ``page`` and ``markdown`` show it.
"""
