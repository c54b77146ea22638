/**
 * The page at `/`.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { PAGE } from "../page.ts";
import type { Route } from "../route.ts";

/** A chat in the browser. */
export const pageRoute: Route = {
  method: "get",
  path: "/",
  summary: "A page with a chat",
  responses: { 200: { description: "The page", content: { "text/html": { schema: z.string() } } } },
  handler: () =>
    new Response(PAGE, {
      headers: {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy":
          "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; " +
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
      },
    }),
};
