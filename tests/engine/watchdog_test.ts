import { assert, assertEquals, assertRejects } from "@std/assert";
import { test } from "node:test";
import { Engine, type EngineState } from "../../lib/engine/engine.ts";
import type { EngineOptions } from "../../lib/engine/load.ts";
import { EngineError } from "../../lib/engine/request.ts";
import { createApp } from "../../lib/server/mod.ts";

/** An engine whose thread hangs at its first request. */
function stuck(options: EngineOptions): Engine {
  const Real = globalThis.Worker, hanging = new URL("./stuck_worker.ts", import.meta.url);
  globalThis.Worker = class extends Real {
    constructor(url: string | URL, options?: WorkerOptions) {
      super(String(url).endsWith("/worker.ts") ? hanging : url, options);
    }
  } as typeof Worker;
  try {
    return new Engine(options);
  } finally {
    globalThis.Worker = Real;
  }
}

/** Waits for a state. */
async function until(engine: Engine, state: EngineState): Promise<void> {
  for (let i = 0; i < 2000 && engine.state !== state; i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assertEquals(engine.state, state);
}

test("a thread that hangs: health says so, the watchdog ends it, requests and close do not wait", async () => {
  const engine = stuck({ watchdog: 4 }), app = createApp(engine);
  await engine.ready;
  const health = async () => {
    const response = await app.fetch(new Request("http://localhost/health"));
    return [response.status, (await response.json()).status];
  };
  assertEquals(await health(), [200, "ok"]);
  const hanging = assertRejects(() => engine.generate({ prompt: [1] }).next(), EngineError, "engine failed");
  await until(engine, "stalled");
  assertEquals(await health(), [503, "stalled"]);
  await assertRejects(() => engine.generate({ prompt: [1] }).next(), EngineError, "does not respond");
  assert((await engine.failed).message.includes("no sign of life"));
  assertEquals(await health(), [503, "failed"]);
  await hanging;
  await assertRejects(() => engine.generate({ prompt: [1] }).next(), EngineError, "engine failed");
  await engine.close();
  app[Symbol.dispose]();
});

test("closing a thread that hangs takes no longer than the grace", async () => {
  const engine = stuck({});
  await engine.ready;
  const ended = assertRejects(() => engine.generate({ prompt: [1] }).next(), EngineError, "shutting down");
  const begin = performance.now();
  await engine.close(0.2);
  assert(performance.now() - begin < 5000);
  await ended;
  assertEquals(engine.state, "closed");
});
