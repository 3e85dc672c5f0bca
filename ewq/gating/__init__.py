"""Did quality, memory or speed get worse, and how sure can one be?"""
