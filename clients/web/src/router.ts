// Where the page is, in the address's fragment, so that the gateway serves one document: `#/`, `#/c/ID`, `#/loop`.

import { signal } from "@preact/signals";

export type Route = { page: "chat"; conversation: string | null } | { page: "loop" };

export function routeOf(hash: string): Route {
  const path = hash.replace(/^#\/?/, "");
  if (path === "loop") return { page: "loop" };
  const conversation = /^c\/([0-9a-f]+)$/.exec(path)?.[1];
  return { page: "chat", conversation: conversation ?? null };
}

export function hashOf(route: Route): string {
  if (route.page === "loop") return "#/loop";
  return route.conversation ? `#/c/${route.conversation}` : "#/";
}

export const route = signal<Route>({ page: "chat", conversation: null });

export function go(to: Route): void {
  location.hash = hashOf(to);
  route.value = to;
}

export function startRouter(): void {
  const follow = () => {
    route.value = routeOf(location.hash);
  };
  addEventListener("hashchange", follow);
  follow();
}
