"""Jobs, which train one run each, and the engines that execute several at a time."""
