const nav = element.querySelector('.ace-learn-steps');
const steps = [...nav.querySelectorAll('button')];

// The style sheet shows the lesson that the navigation is at.
function go(step, scroll = true) {
    const next = Math.min(steps.length, Math.max(1, step));
    nav.dataset.step = String(next);
    for (const button of steps) {
        const here = Number(button.dataset.step) === next;
        if (here) button.setAttribute('aria-current', 'step');
        else button.removeAttribute('aria-current');
    }
    document.dispatchEvent(new CustomEvent('ace-lesson', { detail: { step: next, steps: steps.length } }));
    if (!scroll) return;
    if (nav.getBoundingClientRect().top < 0) nav.scrollIntoView({ block: 'start' });
    const title = document.querySelector(`#lesson-${next} h2`);
    if (!title) return;
    title.tabIndex = -1;
    title.focus({ preventScroll: true });
}

nav.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button) go(Number(button.dataset.step));
});
document.addEventListener('ace-lesson-move', (event) => go(Number(nav.dataset.step) + event.detail));
document.addEventListener('ace-lesson-done', (event) => {
    steps[event.detail - 1].dataset.done = 'true';
    steps[event.detail - 1].title = 'Answered';
});
go(1, false);
