"""Health, information, cache, token counts, OpenAPI."""

from __future__ import annotations

from server.running import Running, ids_of


def test_health(server: Running) -> None:
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/health_generate").status_code == 200


def test_model_info(server: Running) -> None:
    info = server.http.get("/get_model_info").json()
    assert info["is_generation"] is True
    assert info["model_path"] == info["tokenizer_path"]


def test_server_info_has_settings_and_limits(server: Running) -> None:
    info = server.http.get("/get_server_info").json()
    assert info["schedule_policy"] == "lpm"
    assert info["max_total_num_tokens"] == 4096
    assert "api_key" not in info
    assert info["engines"][0]["max_total_tokens"] == 4096


def test_flush_cache_tells_whether_it_did(server: Running) -> None:
    assert server.http.get("/flush_cache").status_code == 200
    assert server.http.post("/flush_cache").status_code == 200
    server.engine.hold()
    with server.http.stream(
        "POST", "/generate", json={"text": "Hello", "stream": True, "rid": "busy"}
    ) as answer:
        server.engine.wait_for_requests(1)
        refused = server.http.post("/flush_cache")
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "engine_busy"
        server.post("/abort_request", rid="busy")
        answer.read()


def test_tokenize_and_detokenize(server: Running) -> None:
    ids = ids_of("Hello world")
    assert server.post("/tokenize", prompt="Hello world").json() == {
        "tokens": ids, "count": len(ids), "max_model_len": 512,
    }  # fmt: skip
    assert server.post("/tokenize", prompt=["Hello world", "Hi"]).json()["tokens"][0] == ids
    chat = server.post("/tokenize", messages=[{"role": "user", "content": "Hi"}]).json()
    assert chat["tokens"] == ids_of("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert server.post("/detokenize", tokens=ids).json() == {"text": "Hello world"}


def test_openapi_names_every_route_and_field(server: Running) -> None:
    described = server.http.get("/openapi.json").json()
    assert {"/generate", "/v1/chat/completions", "/health"} <= set(described["paths"])
    assert "messages" in described["components"]["schemas"]["ChatBody"]["properties"]
