//! Every outcome of a call, written down: who, what, when, how it ended.
