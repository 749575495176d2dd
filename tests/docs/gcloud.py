"""The commands of gcloud that pages and launch scripts use, with the flags that its help (version 528) lists of them."""

KNOWN = {
    "compute tpus tpu-vm create": {"--zone", "--accelerator-type", "--version", "--spot", "--scopes", "--service-account"},
    "compute tpus tpu-vm delete": {"--zone", "--async", "--quiet"},
    "compute tpus tpu-vm scp": {"--zone", "--worker", "--recurse", "--compress"},
    "compute tpus tpu-vm ssh": {"--zone", "--worker", "--command"},
    "compute tpus queued-resources create": {
        "--zone", "--node-id", "--accelerator-type", "--runtime-version", "--spot", "--scopes", "--metadata-from-file",
    },
    "compute tpus queued-resources delete": {"--zone", "--async", "--force", "--quiet"},
    "compute tpus queued-resources list": {"--zone", "--filter", "--format"},
    "storage cat": set(),
    "storage cp": {"--recursive"},
    "storage rm": {"--recursive"},
    "storage rsync": {"--recursive"},
}  # fmt: skip
NEEDED = {
    "compute tpus tpu-vm create": {"--zone", "--version"},
    "compute tpus queued-resources create": {"--zone", "--node-id", "--accelerator-type", "--runtime-version"},
}
SWITCHES = {"--spot", "--async", "--quiet", "--force", "--recursive", "--recurse", "--compress"}


def parsed(words):
    """``(command, its places, its flags)`` of the words after ``gcloud``; an AssertionError where gcloud would refuse them."""
    command = next((name for name in KNOWN if words[: len(name.split())] == name.split()), None)
    assert command, words
    rest, places, flags = list(words[len(command.split()) :]), [], {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        flag, equals, value = word.partition("=")
        assert flag in KNOWN[command] and flag not in flags, words
        assert flag in SWITCHES or equals or rest, words
        flags[flag] = True if flag in SWITCHES else value if equals else rest.pop(0)
    assert (places and places[0] != "-") or command.endswith(("list", "cp")), words
    assert NEEDED.get(command, set()) <= flags.keys(), words
    return command, places, flags
