import{e as o}from"./index-DeVO8kGP.js";const e=o;export{e as ru};
