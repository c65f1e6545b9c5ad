//! A corpus: the inputs of one target in one file.
