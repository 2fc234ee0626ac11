"""The network device: frames arrive whole, to whom they belong, in the form that was negotiated."""
