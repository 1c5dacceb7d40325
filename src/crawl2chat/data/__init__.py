"""A document on its way from crawl to shard."""
