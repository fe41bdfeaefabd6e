//! Standard input and output, bridged to a node's door.
