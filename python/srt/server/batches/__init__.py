"""OpenAI's Files and Batch endpoints: a durable store, and the runner that works it off."""
