const bar = element.querySelector('.ace-learn-walk');
const [back, next] = bar.querySelectorAll('button');
const place = bar.querySelector('[data-slot="place"]');

function show(step, steps) {
    back.disabled = step === 1;
    next.disabled = step === steps;
    place.textContent = `${step} of ${steps}`;
}

document.addEventListener('ace-lesson', ({ detail }) => show(detail.step, detail.steps));
bar.addEventListener('click', (event) => {
    const move = Number(event.target.dataset.go);
    if (move) document.dispatchEvent(new CustomEvent('ace-lesson-move', { detail: move }));
});
const nav = document.querySelector('.ace-learn-steps');
show(Number(nav?.dataset.step || 1), nav?.querySelectorAll('button').length || 8);
