import { assertEquals } from "@std/assert";
import { get, request } from "node:http";
import { test } from "node:test";
import { isLoopback } from "../../lib/server/origin.ts";
import { closeAfter, start } from "./fixture.ts";

closeAfter();

const { server } = await start({ cors: ["https://mine.example"] });
const { server: named } = await start({ hosts: ["vecinfer.example"] });
const { server: open } = await start({ hosts: undefined, hostname: "0.0.0.0" });
const { server: any } = await start({ cors: ["*"] });

/** Status and code of an answer to headers that `fetch` would not send. */
function ask(url: string, path: string, headers: Record<string, string>, body?: string): Promise<[number, string?]> {
  return new Promise((resolve, reject) => {
    const send = body === undefined ? get : request;
    const asked = send(url + path, { headers, method: body === undefined ? "GET" : "POST" }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (part: string) => text += part);
      response.on("end", () => {
        const code = text.startsWith("{") ? JSON.parse(text).error?.code : undefined;
        resolve(code ? [response.statusCode!, code] : [response.statusCode!]);
      });
    });
    asked.on("error", reject);
    asked.end(body);
  });
}

const port = new URL(server.url).port;
const JSON_TYPE = { "content-type": "application/json" };

test("loopback: names of loopback, and no others", () => {
  for (
    const host of ["localhost", "LOCALHOST", "a.localhost", "localhost.", "127.0.0.1", "127.1.2.3", "::1", "[::1]"]
  ) {
    assertEquals(isLoopback(host), true, host);
  }
  for (
    const host of [
      "localhost.evil.example",
      "evil.example",
      "127.0.0.1.evil.example",
      "0.0.0.0",
      "10.0.0.1",
      "",
      "1270.0.0.1",
    ]
  ) {
    assertEquals(isLoopback(host), false, host);
  }
});

test("a server on loopback answers to names of loopback, and to those that it was told", async () => {
  for (const host of ["localhost", `localhost:${port}`, `127.0.0.1:${port}`, `[::1]:${port}`]) {
    assertEquals(await ask(server.url, "/openapi.json", { host }), [200], host);
  }
  for (const host of ["evil.example", `evil.example:${port}`, "127.0.0.1.evil.example", "vecinfer.example"]) {
    for (const path of ["/openapi.json", "/", "/v1/models", "/metrics", "/health"]) {
      assertEquals(await ask(server.url, path, { host }), [403, "host_not_allowed"], `${host} ${path}`);
    }
    assertEquals(await ask(server.url, "/v1/completions", { host, ...JSON_TYPE }, "{}"), [403, "host_not_allowed"]);
  }
  for (const host of ["vecinfer.example", "VecInfer.example:80", "localhost"]) {
    assertEquals(await ask(named.url, "/openapi.json", { host }), [200], host);
  }
  assertEquals(await ask(named.url, "/openapi.json", { host: "evil.example" }), [403, "host_not_allowed"]);
  const anywhere = `http://127.0.0.1:${new URL(open.url).port}`;
  assertEquals(await ask(anywhere, "/openapi.json", { host: "evil.example" }), [200]);
});

test("pages of other origins are refused, but those of --cors", async () => {
  await server.ready;
  const body = JSON.stringify({ model: "tiny-llama", prompt: "a", max_tokens: 1 });
  const post = (url: string, origin: string, type = "application/json") =>
    ask(url, "/v1/completions", { origin, "content-type": type }, body);
  for (
    const origin of ["https://evil.example", "http://localhost.evil.example", "null", "http://localhost:1", "file://"]
  ) {
    assertEquals(await post(server.url, origin), [403, "origin_not_allowed"], origin);
    assertEquals(await ask(server.url, "/v1/models", { origin }), [403, "origin_not_allowed"], origin);
  }
  for (const origin of [server.url, "https://mine.example"]) {
    assertEquals(await post(server.url, origin), [200], origin);
  }
  await any.ready;
  assertEquals(await post(any.url, "https://evil.example"), [200]);
  // Types that a browser sends without asking first.
  for (
    const type of ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data"]
  ) {
    assertEquals(await post(server.url, server.url, type), [415, "unsupported_media_type"], type);
  }
  assertEquals(await ask(server.url, "/v1/completions", {}, body), [415, "unsupported_media_type"]);
});

test("the page may not be framed, nor send forms or change where its links lead", async () => {
  const response = await fetch(server.url), policy = response.headers.get("content-security-policy")!;
  await response.text();
  const rules = policy.split(";").map((rule) => rule.trim());
  for (const rule of ["frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "default-src 'none'"]) {
    assertEquals(rules.includes(rule), true, policy);
  }
});
