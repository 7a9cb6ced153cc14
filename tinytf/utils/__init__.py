"""The floor: what several rooms need, each thing once. It has no subject of its own and imports no other room."""
