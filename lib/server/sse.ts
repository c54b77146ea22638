/**
 * Server-sent events as the body of a response.
 *
 * @module
 */

/** Milliseconds of silence after which a stream says that it is alive; Bun and proxies close idle connections. */
const PING_INTERVAL = 5000;

/** One event. */
export interface ServerSentEvent {
  /** Its name. Default none, which clients take for "message". */
  readonly event?: string;
  /** What it carries, without line breaks. */
  readonly data: string;
}

/** An event as it goes over the wire. */
export function frame({ event, data }: ServerSentEvent): string {
  return `${event === undefined ? "" : `event: ${event}\n`}data: ${data}\n\n`;
}

/** Events as a response. `done` is called once, with the error where there was one; `leave` when the client leaves. */
export function eventStream(
  events: AsyncGenerator<ServerSentEvent>,
  leave: () => void,
  done: (error?: unknown) => void,
): Response {
  const encoder = new TextEncoder();
  let ping: ReturnType<typeof setInterval> | undefined, quiet = true, open = true, left = false;
  const end = (error?: unknown): void => {
    if (!open) return;
    open = false;
    clearInterval(ping);
    done(error);
  };
  // An event is taken when the client has read the one before it: what waits till then is the engine's to bound.
  const body = new ReadableStream<Uint8Array>({
    start(controller): void {
      ping = setInterval(() => {
        if (quiet && open && !left && controller.desiredSize !== null && controller.desiredSize >= 0) {
          controller.enqueue(encoder.encode(": ping\n\n"));
        }
        quiet = true;
      }, PING_INTERVAL);
    },
    async pull(controller): Promise<void> {
      try {
        const event = await events.next();
        if (left) return;
        if (event.done) {
          end();
          controller.close();
        } else {
          quiet = false;
          controller.enqueue(encoder.encode(frame(event.value)));
        }
      } catch (error) {
        if (left) return;
        end(error);
        controller.close();
      }
    },
    async cancel(): Promise<void> {
      left = true;
      leave();
      try {
        while (!(await events.next()).done);
        end();
      } catch (error) {
        end(error);
      }
    },
  }, { highWaterMark: 0 });
  return new Response(body, {
    headers: {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    },
  });
}
