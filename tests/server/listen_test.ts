import { assertMatch, assertStringIncludes } from "@std/assert";
import { z } from "@hono/zod-openapi";
import { connect } from "node:net";
import { after, test } from "node:test";
import { readBody } from "../../lib/server/body.ts";
import { apiError } from "../../lib/server/error.ts";
import { listen } from "../../lib/server/listen.ts";

const listener = await listen("127.0.0.1", 0, async (request) => {
  if (request.method === "GET") return new Response("next");
  try {
    await readBody(request, z.unknown(), 1000);
    return new Response("read");
  } catch (error) {
    return apiError(error).response();
  }
});
after(() => listener.stop());

/** What comes back over one connection, until its last answer or its end. */
function exchange(text: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let answer = "";
  const socket = connect(listener.port, "127.0.0.1", () => socket.write(text));
  socket.setTimeout(10_000, () => socket.destroy(new Error(`nothing came after: ${answer}`)));
  socket.on("data", (part) => {
    answer += part;
    if (answer.includes("next")) socket.end();
  });
  socket.on("close", () => resolve(answer));
  socket.on("error", reject);
  return promise;
}

const NEXT = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

for (const size of [10, 5_000, 500_000]) {
  test(`a connection goes on after a body of ${size} bytes, with its length or in pieces`, async () => {
    const body = `5${" ".repeat(size - 1)}`, status = size > 1000 ? /^HTTP\/1\.1 413 / : /^HTTP\/1\.1 200 /;
    for (
      const sent of [
        `content-length: ${size}\r\n\r\n${body}`,
        `transfer-encoding: chunked\r\n\r\n${size.toString(16)}\r\n${body}\r\n0\r\n\r\n`,
      ]
    ) {
      const answer = await exchange(`POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n${sent}${NEXT}`);
      assertMatch(answer, status);
      assertStringIncludes(answer, "next");
    }
  });
}
