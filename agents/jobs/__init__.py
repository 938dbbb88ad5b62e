"""Jobs that train one run each, and engines that execute several at a time."""
