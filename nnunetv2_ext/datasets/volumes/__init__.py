"""Where an image or a label map lies and how it is read: one class per kind of storage, all with the same methods.

They are plain data, so that worker processes can have them: nothing is read before it is asked for.
"""
