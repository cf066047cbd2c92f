"""The same scan on many machines: Ray runs it, object storage has the files and the rows. Nothing else imports this."""
