import{e as o}from"./index-DVijBdVu.js";const e=o;export{e as ru};
