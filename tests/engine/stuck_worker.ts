/** In place of lib/engine/worker.ts: says that it is loaded, and hangs at the first request. */
import type { FromThread, ToThread } from "../../lib/engine/thread.ts";

const scope = globalThis as unknown as {
  postMessage(message: FromThread): void;
  onmessage: (event: { data: ToThread }) => void;
};

const config = { caches: [{ kv: "vq2", sequences: 2, queue: 2, context: 100 }] };

scope.onmessage = ({ data }) => {
  if (data.type === "load") {
    scope.postMessage({ type: "loaded", config, stats: { caches: {} } } as unknown as FromThread);
  }
  if (data.type === "beat") scope.postMessage({ type: "beat" });
  if (data.type === "generate") { for (;;); }
};
