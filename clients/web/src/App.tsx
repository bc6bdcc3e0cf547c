import { signal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Chat } from "./chat/Chat.tsx";
import { conversation } from "./chat/conversations.ts";
import { t } from "./i18n.ts";
import { route } from "./router.ts";
import { Settings, settingsOpen } from "./Settings.tsx";
import { MenuButton, Sidebar } from "./Sidebar.tsx";
import { useShortcuts } from "./shortcuts.ts";
import { LiveRegion } from "./ui/announce.tsx";

/** The loop's page and its charts are fetched when somebody looks at them. */
const loopPage = signal<ComponentType | null>(null);

function Loop() {
  const [failed, setFailed] = useState(false);
  useEffect(() => {
    if (loopPage.value) return;
    import("./loop/LoopPage.tsx").then(
      (module) => {
        loopPage.value = module.LoopPage;
      },
      () => setFailed(true),
    );
  }, []);
  const Page = loopPage.value;
  if (Page) return <Page />;
  return <p class="loop-note">{failed ? t("unreachable") : t("loopLoading")}</p>;
}

export function App() {
  useShortcuts();
  const here = route.value;
  const open = here.page === "chat" && here.conversation ? conversation(here.conversation) : undefined;
  const title = here.page === "loop" ? t("loopTitle") : open?.title || t("newChat");
  useEffect(() => {
    document.title = `${title} – Plaudit`;
  }, [title]);
  return (
    <div class="shell">
      <button type="button" class="skip" onClick={skip}>
        {t("skip")}
      </button>
      <Sidebar />
      <main id="main" class="page" tabIndex={-1}>
        <header class="page-head">
          <MenuButton />
          <h1 class={here.page === "chat" ? "page-title quiet" : "page-title"}>{title}</h1>
        </header>
        {here.page === "loop" ? <Loop /> : <Chat key={here.conversation ?? "new"} id={here.conversation} />}
      </main>
      {settingsOpen.value && <Settings />}
      <LiveRegion />
    </div>
  );
}

/** No link: the fragment is the router's. */
function skip(): void {
  document.getElementById("main")?.focus();
}
