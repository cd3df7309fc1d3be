"""Files by checksum, from a server on this machine: nothing here reaches the internet."""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from srlab import fetch, runtime

WHOLE = b"a picture, let us say" * 100
PATH = "someone/pictures/0123abcd/HR/baby.png"


class Server:
    """Serves what `replies` says for a path, one reply after the other, the last one for ever; remembers who asked."""

    def __init__(self):
        self.replies: dict[str, list[bytes]] = {}
        self.claimed: int | None = None  # Content-Length to claim instead of the true one
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                queue = server.replies.get(self.path)
                if not queue:
                    self.send_error(404)
                    return
                body = queue.pop(0) if len(queue) > 1 else queue[0]
                self.send_response(200)
                self.send_header("Content-Length", str(server.claimed or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLAB_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)


def pin(base, body=WHOLE, path=PATH):
    return fetch.PinnedFile(path, f"{base}/{path}", hashlib.sha256(body).hexdigest(), len(body))


def put(folder, body, path=PATH):
    target = folder / path
    target.parent.mkdir(parents=True)
    target.write_bytes(body)
    return target


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_file_is_downloaded_once_and_then_found(server):
    server.replies[f"/{PATH}"] = [WHOLE]
    first = fetch.fetch(pin(server.base))
    assert first.read_bytes() == WHOLE
    assert fetch.fetch(pin(server.base)) == first
    assert server.asked == [f"/{PATH}"]
    assert files_in(fetch.cache_dir()) == [first]  # no temporary file stays behind


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_others_may_read_a_download_as_far_as_the_umask_lets_them(server, umask, expected):
    """A cache can be somebody else's mirror."""
    server.replies[f"/{PATH}"] = [WHOLE]
    before = os.umask(umask)
    try:
        path = fetch.fetch(pin(server.base))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == expected


def test_a_copy_that_cannot_be_read_is_one_of_the_troubles(server, tmp_path, monkeypatch):
    stick = put(tmp_path / "stick", WHOLE)
    monkeypatch.setenv("SRLAB_MIRROR", str(tmp_path / "stick"))

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fetch, "_hash", refuse)
    with pytest.raises(fetch.FetchError, match=re.escape(f"{stick}: cannot be read: Permission denied")):
        fetch.fetch(pin(server.base))


def test_a_damaged_file_in_the_cache_is_replaced(server):
    server.replies[f"/{PATH}"] = [WHOLE]
    damaged = put(fetch.cache_dir(), b"X" + WHOLE[1:])
    assert fetch.fetch(pin(server.base)) == damaged
    assert damaged.read_bytes() == WHOLE


def test_a_file_damaged_after_it_was_verified_is_noticed(server):
    server.replies[f"/{PATH}"] = [WHOLE]
    path = fetch.fetch(pin(server.base))
    path.write_bytes(b"X" + WHOLE[1:])  # same length
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    assert fetch.fetch(pin(server.base)).read_bytes() == WHOLE


def test_a_wrong_hash_is_fetched_once_more_then_refused_with_both_hashes(server):
    wrong = b"another picture"
    server.replies[f"/{PATH}"] = [wrong]
    with pytest.raises(fetch.FetchError) as refused:
        fetch.fetch(pin(server.base))
    assert hashlib.sha256(wrong).hexdigest() in str(refused.value)
    assert hashlib.sha256(WHOLE).hexdigest() in str(refused.value)
    assert len(server.asked) == 2
    assert not files_in(fetch.cache_dir())


def test_a_right_file_at_the_second_attempt_is_taken(server):
    server.replies[f"/{PATH}"] = [b"hiccup", WHOLE]
    assert fetch.fetch(pin(server.base)).read_bytes() == WHOLE


def test_a_connection_that_breaks_half_way_leaves_nothing(server):
    server.replies[f"/{PATH}"] = [WHOLE[: len(WHOLE) // 2]]
    server.claimed = len(WHOLE)
    with pytest.raises(fetch.FetchError, match="cannot fetch"):
        fetch.fetch(pin(server.base))
    assert not files_in(fetch.cache_dir())


def test_half_a_file_put_there_by_hand_is_not_taken_for_a_whole_one(server):
    put(fetch.cache_dir(), WHOLE[:500])
    with pytest.raises(fetch.FetchError, match=r"500 bytes \(cut short\?\)"):
        fetch.fetch(pin(server.base))  # the server answers 404
    assert not files_in(fetch.cache_dir())  # deleted, though nothing took its place


def test_without_network_and_mirror_the_message_says_what_to_do():
    entry = pin("http://127.0.0.1:1")  # nothing listens there
    with pytest.raises(fetch.FetchError) as refused:
        fetch.fetch(entry)
    by_hand = fetch.cache_dir() / PATH
    assert "SRLAB_MIRROR" in str(refused.value)
    assert str(by_hand) in str(refused.value)
    by_hand.write_bytes(WHOLE)  # the folder is there already
    assert fetch.fetch(entry) == by_hand


def test_a_mirror_folder_is_used_in_place(tmp_path, monkeypatch):
    stick = put(tmp_path / "stick", WHOLE)
    monkeypatch.setenv("SRLAB_MIRROR", str(tmp_path / "stick"))
    assert fetch.fetch(pin("http://127.0.0.1:1")) == stick
    assert fetch.is_here(pin("http://127.0.0.1:1"))
    assert not files_in(tmp_path / "cache")


def test_a_wrong_file_in_a_mirror_folder_is_passed_over_but_never_deleted(server, tmp_path, monkeypatch):
    stick = put(tmp_path / "stick", b"X" + WHOLE[1:])
    monkeypatch.setenv("SRLAB_MIRROR", str(tmp_path / "stick"))
    with pytest.raises(fetch.FetchError, match=re.escape(f"{stick}: {len(WHOLE)} bytes with sha256")):
        fetch.fetch(pin(server.base))
    server.replies[f"/{PATH}"] = [WHOLE]
    assert fetch.fetch(pin(server.base)) == tmp_path / "cache" / PATH
    assert stick.read_bytes()[:1] == b"X"


def test_a_mirror_address_is_asked_before_the_file_s_own(server, monkeypatch):
    monkeypatch.setenv("SRLAB_MIRROR", f"{server.base}/near/")
    server.replies[f"/near/{PATH}"] = [WHOLE]
    assert fetch.fetch(pin(server.base)).read_bytes() == WHOLE
    assert server.asked == [f"/near/{PATH}"]


def test_a_mirror_address_without_the_file_falls_back_on_the_file_s_own(server, monkeypatch):
    monkeypatch.setenv("SRLAB_MIRROR", f"{server.base}/near")
    server.replies[f"/{PATH}"] = [WHOLE]
    assert fetch.fetch(pin(server.base)).read_bytes() == WHOLE


def test_a_misspelt_mirror_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLAB_MIRROR", str(tmp_path / "stikc"))
    with pytest.raises(fetch.FetchError, match=r"stikc.*neither a folder"):
        fetch.fetch(pin("http://127.0.0.1:1"))


def test_a_cache_that_cannot_be_written_is_said(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SRLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(fetch.FetchError, match="Set SRLAB_CACHE"):
        fetch.fetch(pin(server.base))


def test_many_at_once_may_ask_for_one_file(server):
    server.replies[f"/{PATH}"] = [WHOLE]
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch.fetch, [pin(server.base)] * 8))
    assert files_in(fetch.cache_dir()) == list(paths)
    assert paths.pop().read_bytes() == WHOLE


def test_a_set_comes_in_its_order_and_only_what_is_missing_is_asked_for(server):
    bodies = {f"someone/{name}.png": name.encode() * 50 for name in "abcdef"}
    entries = [pin(server.base, body, path) for path, body in bodies.items()]
    server.replies = {f"/{path}": [body] for path, body in bodies.items()}
    fetch.fetch(entries[2])
    server.asked.clear()
    assert [path.read_bytes() for path in fetch.fetch_all(entries, "letters")] == list(bodies.values())
    assert sorted(server.asked) == [f"/someone/{name}.png" for name in "abdef"]


def test_a_set_that_cannot_be_had_is_given_up_early(server):
    entries = [pin(server.base, WHOLE, f"someone/{index}.png") for index in range(200)]
    with pytest.raises(fetch.FetchError):
        fetch.fetch_all(entries, "absent")
    assert len(server.asked) < 100


@pytest.mark.parametrize(
    ("table", "files"),
    [("set5", 5 * 5), ("set14", 14 * 5), ("b100", 100), ("urban100", 100), ("bsd400", 400), ("weights", 15)],
)
def test_tables_pin_every_file_to_a_commit_and_a_hash(table, files):
    entries = fetch.read_registry(table)
    assert len({entry.url for entry in entries}) == len(entries) == files
    for entry in entries:
        assert re.fullmatch(r"https://[^/]+/[\w-]+/[\w-]+/[0-9a-f]{40}/\S+", entry.url)
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.size > 100
        assert entry.terms


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# base: https://x/\naddress,sha256,bytes\n", "expected path,sha256,bytes"),
        ("path,sha256,bytes\na.png,0,1\n", "lacks the line '# base: ADDRESS/'"),
        ("", "expected path,sha256,bytes"),
    ],
)
def test_a_table_written_otherwise_is_told_how(tmp_path, monkeypatch, text, words):
    (tmp_path / "mine.csv").write_text(text)
    monkeypatch.setattr(runtime, "repo_data", lambda *_: tmp_path)
    with pytest.raises(fetch.FetchError, match=words):
        fetch.read_registry("mine")


def test_an_unknown_table_lists_the_tables():
    with pytest.raises(fetch.FetchError, match=r"set6.*bsd400.*set5"):
        fetch.read_registry("set6")
