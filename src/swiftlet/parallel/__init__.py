"""One model on many devices: process groups, sharding, gradient reduction."""
