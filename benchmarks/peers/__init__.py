"""Other queues under the same load: `systems` lists them, and each has a module in `adapters`."""
