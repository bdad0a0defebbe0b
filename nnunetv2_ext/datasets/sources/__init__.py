"""Where cases are found: one module for each shape in which people keep their data, each with one function.

They read tables and list folders; images and label maps are opened by whoever takes the cases.
"""
