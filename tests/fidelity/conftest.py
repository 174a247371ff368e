from recordings import COUNT, FOLDER, RESULTS


def pytest_terminal_summary(terminalreporter):
    """Says how many recordings were compared, also where the report is quiet."""
    if FOLDER is None:
        terminalreporter.write_line(f"fidelity: {COUNT} recordings were not run: UNIPELT_FIXTURES is not set")
    elif RESULTS:
        names = {name for name, *_ in RESULTS}
        explained = {name for name, _, _, why in RESULTS if why}
        terminalreporter.write_line(
            f"fidelity: {len(names)} of {COUNT} recordings compared ({len(explained)} with an explained difference of "
            f"method or call), the others belong to later work; largest error of an output "
            f"{max(r[1] for r in RESULTS):.1e}, of a gradient {max(r[2] for r in RESULTS):.1e} of its largest entry"
        )
