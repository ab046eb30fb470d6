"""Sales: a business asks a customer about needs before it offers a product."""
