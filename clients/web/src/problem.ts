// What can go wrong between the page and the gateway, by what the page does about it.

/** unreachable: wait and try again. busy: the same, later. key: a key is missing or may not. absent: there is no such
 * thing here. refused: what was sent is wrong, and sending it again changes nothing. failed: the server's fault. */
export type Kind = "unreachable" | "busy" | "key" | "absent" | "refused" | "failed";

export class Problem extends Error {
  readonly kind: Kind;
  /** Seconds that the server asks to wait; 0: it does not say. */
  readonly retryAfter: number;

  constructor(kind: Kind, message: string, retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may succeed later. It may after a 404: a proxy whose backend is away says that, too. */
  get passing(): boolean {
    return this.kind !== "refused";
  }
}

export function kindOf(status: number): Kind {
  if (status === 401 || status === 403) return "key";
  if (status === 404) return "absent";
  if (status === 429) return "busy";
  if (status === 408 || status === 502 || status === 503 || status === 504) return "unreachable";
  return status >= 500 ? "failed" : "refused";
}

/** Of an error that comes in the middle of a stream: its status line is long gone. */
export function kindOfError({ type, code }: { type?: string; code?: string }): Kind {
  if (code === "unavailable" || code === "timeout") return "unreachable";
  if (code === "invalid_api_key" || code === "permission_denied") return "key";
  if (type === "rate_limit_error") return "busy";
  return type === "invalid_request_error" ? "refused" : "failed";
}

/** What an error body in OpenAI's shape says; `otherwise` if it says nothing. */
export function messageOf(body: unknown, otherwise: string): string {
  const error = (body as { error?: { message?: unknown } } | null)?.error;
  return typeof error?.message === "string" && error.message ? error.message : otherwise;
}

/** The problem behind anything thrown by fetch or while its body was read. */
export function asProblem(thrown: unknown): Problem {
  if (thrown instanceof Problem) return thrown;
  return new Problem("unreachable", thrown instanceof Error ? thrown.message : String(thrown));
}
