"""One file a command: a public function each."""
