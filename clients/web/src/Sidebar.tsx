import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { conversations, forget } from "./chat/conversations.ts";
import type { Conversation } from "./chat/model.ts";
import { stop } from "./chat/talk.ts";
import { hasLoop } from "./deployment.ts";
import { t } from "./i18n.ts";
import { go, hashOf, type Route, route } from "./router.ts";
import { settingsOpen } from "./Settings.tsx";
import { Dialog } from "./ui/Dialog.tsx";
import { Icon, type IconName } from "./ui/Icon.tsx";
import { IconButton } from "./ui/IconButton.tsx";

/** On a narrow screen the sidebar is a drawer. */
const drawer = signal(false);

export function MenuButton() {
  return (
    <IconButton
      icon="menu"
      class="menu-button"
      label={t("openMenu")}
      expanded={drawer.value}
      onClick={() => {
        drawer.value = true;
      }}
    />
  );
}

export function Sidebar() {
  const [leaving, setLeaving] = useState<Conversation | null>(null);
  const close = () => {
    drawer.value = false;
  };
  useEffect(() => {
    if (!drawer.value) return;
    const closeOnEscape = (event: KeyboardEvent) => event.key === "Escape" && close();
    addEventListener("keydown", closeOnEscape);
    document.querySelector<HTMLElement>(".sidebar button, .sidebar a")?.focus();
    return () => removeEventListener("keydown", closeOnEscape);
  }, [drawer.value]);
  const here = route.value;
  return (
    <>
      {drawer.value && <button type="button" class="scrim" aria-label={t("closeMenu")} onClick={close} />}
      <nav class={drawer.value ? "sidebar open" : "sidebar"} aria-label={t("conversations")}>
        <div class="brand">
          <img src="/favicon.svg" alt="" width="26" height="26" />
          <span>Plaudit</span>
          <IconButton icon="close" class="drawer-close" label={t("closeMenu")} onClick={close} />
        </div>
        <Place to={{ page: "chat", conversation: null }} icon="new" onGo={close}>
          {t("newChat")}
        </Place>
        {hasLoop.value && (
          <Place to={{ page: "loop" }} icon="loop" onGo={close}>
            {t("loop")}
          </Place>
        )}
        <h2 class="sidebar-head">{t("conversations")}</h2>
        <ul class="conversations">
          {conversations.value.map((one) => {
            const current = here.page === "chat" && here.conversation === one.id;
            return (
              <li key={one.id} class={current ? "current" : ""}>
                <a
                  href={hashOf({ page: "chat", conversation: one.id })}
                  aria-current={current ? "page" : undefined}
                  onClick={close}
                  title={one.title}
                >
                  {one.title}
                </a>
                <IconButton
                  icon="trash"
                  size={15}
                  label={t("deleteChat", { title: one.title })}
                  onClick={() => setLeaving(one)}
                />
              </li>
            );
          })}
          {conversations.value.length === 0 && <li class="none">{t("noConversations")}</li>}
        </ul>
        <button
          type="button"
          class="place"
          onClick={() => {
            settingsOpen.value = true;
            close();
          }}
        >
          <Icon name="settings" />
          {t("settings")}
        </button>
      </nav>
      {leaving && <Delete conversation={leaving} onClose={() => setLeaving(null)} />}
    </>
  );
}

function Place({ to, icon, onGo, children }: { to: Route; icon: IconName; onGo: () => void; children: string }) {
  const current = hashOf(route.value) === hashOf(to);
  return (
    <a class="place" href={hashOf(to)} aria-current={current ? "page" : undefined} onClick={onGo}>
      <Icon name={icon} />
      {children}
    </a>
  );
}

function Delete({ conversation, onClose }: { conversation: Conversation; onClose: () => void }) {
  return (
    <Dialog title={t("deleteTitle")} onClose={onClose}>
      <p class="dialog-subject">{conversation.title}</p>
      <p>{t("deleteText")}</p>
      <div class="dialog-actions">
        <button type="button" class="button" onClick={onClose}>
          {t("cancel")}
        </button>
        <button
          type="button"
          class="button danger"
          onClick={() => {
            stop(conversation.id);
            forget(conversation.id);
            const here = route.value;
            if (here.page === "chat" && here.conversation === conversation.id) go({ page: "chat", conversation: null });
            onClose();
          }}
        >
          {t("delete")}
        </button>
      </div>
    </Dialog>
  );
}
