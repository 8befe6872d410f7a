"""The page of a kept run, for tools/results.py: its errors, its curve, its commands."""

UNITS = {"char": "CER", "word": "WER", "phone": "PER"}
VALID = "valid"  # the set that training validates on


def is_recogniser(run):
    """Whether a run has an error rate: students and language models have none."""
    return "error_rate" in run["epochs"][-1]["valid"]


def run_page(run):
    """What is known of a run: how it was made, its errors, its curve, its commands."""
    epochs, (data, part) = run["epochs"], run["data"]
    hours = sum(e["seconds"] for e in epochs) / 3600
    text = (
        f"# {run['name']}, seed {run['seed']}\n\nMade by `tools/results.py`. {data}"
        f"{f': {part}' if part else ''}.\n\n{run['parameters']:,} parameters, "
        f"{epochs[-1]['updates']:,} updates in {len(epochs)} epochs, {hours:.2f} h on "
        f"{run['hardware']} ({run['processes']} process), commit {run['commit']}.\n\n"
    )
    if is_recogniser(run):
        text += error_table(run) + curve(epochs)
        if run["dev"] != VALID:
            text += f"Dev is `{run['dev']}`; training validated on a part of it.\n"
    elif "unexplained" in epochs[-1]["valid"]:
        text += layers_table(run)
    else:
        found = run["results"]["valid"]
        text += (
            f"Perplexity {found['perplexity']:.1f} of {found['tokens']:,} tokens of dev, "
            f"{found['oov_rate']:.2f} % unknown.\n"
        )
    commands = "\n".join(run["commands"])
    return text + (
        "\nAs typed at that commit, but for the names of folders, which have been changed "
        f"from those of the machine:\n\n```\n{commands}\n```\n"
    )


def error_table(run):
    """Markdown table of a run's errors by kind."""
    lines = [
        "| set | measured here | S | D | I | of |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, result in run["results"].items():
        if result.get("lm"):
            name += f": beam {result['beam']}, language model x {result['lm_weight']:g}"
        lines.append(
            f"| {name} | {UNITS[result['unit']]} {result['error_rate']:.2f} "
            f"| {result['substitutions']} | {result['deletions']} "
            f"| {result['insertions']} | {result['reference_length']} |"
        )
    return "\n".join(lines) + "\n\n"


def curve(epochs):
    """The last validation, and some before it."""
    shown = epochs[:: max(1, len(epochs) // 10)]
    if shown[-1] is not epochs[-1]:
        shown.append(epochs[-1])
    line = ", ".join(f"{e['updates']}: {e['valid']['error_rate']:.1f}" for e in shown)
    last = epochs[-1]["valid"]
    text = f"Last epoch: teacher-forced accuracy {last['accuracy']:.3f}"
    if "quantity_error" in last:
        text += (
            f", quantity error {last['quantity_error']:.2f} and length error "
            f"{last['length_error']:.2f} tokens an utterance"
        )
    return f"{text}. Validation error by updates: {line}.\n"


def layers_table(run):
    """Markdown table of a student's error, layer by layer, on the validation set."""
    first, last = (run["epochs"][i]["valid"] for i in (0, -1))
    lines = [
        f"| on dev | weight | after epoch 1 | after epoch {run['epochs'][-1]['epoch']} |",
        "|---|---:|---:|---:|",
    ]
    for name, term in last["losses"].items():
        lines.append(
            f"| {name.replace('_', ' ')}, squared error | {term['weight']:g} "
            f"| {first['losses'][name]['value']:.4f} | {term['value']:.4f} |"
        )
    lines.append(
        f"| last layer, unexplained variance | | {first['unexplained']:.1%} "
        f"| {last['unexplained']:.1%} |"
    )
    return "\n".join(lines) + "\n"
