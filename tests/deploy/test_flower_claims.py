"""Who is which client over Flower: bound on first sight, kept on disk, refused by name."""

import json
import stat

import pytest

from fedjax_lite.deploy.flower_claims import Claims, is_mark, mark_of

ONE, OTHER = "a" * 64, "b" * 64


def why(claims, *claim):
    text = claims.refusal(*claim)
    assert text is not None
    return text


def test_the_first_node_is_the_client_and_a_second_one_is_refused_by_name():
    claims = Claims(None)
    assert claims.refusal(1, 70, ONE) is None
    assert claims.refusal(1, 70, ONE) is None  # as often as it likes
    for mark in ("", OTHER):
        text = why(claims, 1, 90, mark)
        assert "node 90 says that it is client 1, which is node 70" in text
        assert "start it with the client's own folder" in text
    assert claims.refusal(0, 90, OTHER) is None  # a client that nobody is yet


def test_a_node_that_changes_its_claim_is_refused_by_name():
    claims = Claims(None)
    assert claims.refusal(1, 70, ONE) is None
    text = why(claims, 2, 70, ONE)
    assert "node 70 says that it is client 2, and was client 1 before" in text
    assert claims.refusal(2, 71, OTHER) is None  # the client was not taken by the lie
    assert claims.refusal(1, 72, ONE) is None  # the machine of client 1 starts again
    assert "was client 1 before" in why(claims, 2, 70, OTHER)  # also a node that is gone


def test_a_machine_that_starts_again_is_known_by_its_mark():
    claims = Claims(None)
    assert claims.refusal(1, 70, ONE) is None
    assert claims.refusal(1, 80, ONE) is None
    assert "which is node 80" in why(claims, 1, 90, OTHER)
    assert claims.refusal(1, 80, OTHER) is None  # the SuperLink's own id, with a new folder
    assert "which is node 80" in why(claims, 1, 91, ONE)  # whose mark of before is void
    assert Claims(None).refusal(1, 90, OTHER) is None


def test_nobody_comes_back_by_having_no_mark():
    claims = Claims(None)
    assert claims.refusal(1, 70, "") is None
    assert "which is node 70" in why(claims, 1, 71, "")
    assert claims.refusal(1, 70, "") is None


def test_they_are_kept_with_the_run(tmp_path):
    path = tmp_path / "run" / "nodes.json"
    claims = Claims(path)
    assert claims.refusal(1, 2**63 + 70, ONE) is None
    assert ONE not in path.read_text()  # whoever reads the file cannot pass for the machine
    again = Claims(path)
    assert "says that it is client 1, which is node" in why(again, 1, 90, OTHER)
    assert str(path) in why(again, 1, 90, OTHER)
    assert "was client 1 before" in why(again, 2, 2**63 + 70, ONE)
    assert again.refusal(1, 80, ONE) is None
    assert Claims(path).refusal(1, 80, ONE) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"clients": {}, "nodes": {"x": 1}}', '{"clients": {"1": [2]}, "nodes": {}}',
     '{"clients": {"1": ["2", ""]}, "nodes": {}}', '{"clients": {}, "nodes": {"1": true}}',
     '{"clients": {"1": [2, null]}, "nodes": {}}'],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_says_so(text, tmp_path):
    path = tmp_path / "nodes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"nodes\.json is no file of nodes"):
        Claims(path)


def test_a_removed_client_may_be_another_machine(tmp_path):
    """What the refusal says that helps."""
    path = tmp_path / "nodes.json"
    assert Claims(path).refusal(1, 70, ONE) is None
    kept = json.loads(path.read_text())
    del kept["clients"]["1"]
    path.write_text(json.dumps(kept))
    claims = Claims(path)
    assert claims.refusal(1, 90, OTHER) is None
    assert "which is node 90" in why(claims, 1, 70, ONE)


def test_a_mark_is_made_once_and_only_its_owner_reads_it(tmp_path):
    folder = tmp_path / "rows"
    mark = mark_of(str(folder), 3)
    assert is_mark(mark)
    assert mark_of(str(folder), 3) == mark
    assert mark_of(str(tmp_path / "other"), 3) != mark
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("damaged")
    assert mark_of(str(folder), 3) == ""
    assert mark_of("", 3) == mark_of(7, 3) == ""
