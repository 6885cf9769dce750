"""Every message that crosses a module border: values only, one file a domain."""
