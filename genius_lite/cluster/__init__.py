"""Rollouts on several machines: a Ray cluster, or shards that people carry."""
